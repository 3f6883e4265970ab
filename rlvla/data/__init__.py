"""Recordings (LeRobot, HDF5, video) in, demonstrations out; and our own data set of them."""
