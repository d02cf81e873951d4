"""Products with the Hessian and the matrices beside it."""
