"""What is exact without sampling: traces and diagonals in closed form."""
