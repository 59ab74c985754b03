"""What the three scripts share, one package for each concern.

Imports point downwards only, from each line of this list to those below it:

    train, prune         a training run; pruning and what is reported about it
    outputs              model files, logs and pictures
    settings             a run's settings, command line and file names
    datasets, compute    data; the device and what is measured of a network
    process              errors, signals, writing files

tests/test_architecture.py checks this.
"""
