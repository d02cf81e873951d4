"""What is audited. One file a subject, with `audit(seed) -> Verdict` and `again(choice) -> Verdict`.

`simpler(choice)` yields what to try when a draw fails.
"""
