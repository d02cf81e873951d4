"""Faults on purpose: kills, damage, hostile files, full disks, interrupts, two processes at once.

`make torture`; see docs/reliability.md.
"""
