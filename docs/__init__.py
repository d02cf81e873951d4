"""The documentation, and the scripts that write its generated parts; none of it is installed."""
