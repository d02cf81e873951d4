"""Results: records with named axes, in HDF5 and other formats."""
