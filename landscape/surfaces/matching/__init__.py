"""What networks of one function differ by, and the member of each group that brings one nearest to another."""
