"""What the three scripts share, one package for each concern.

Imports point downwards only, from each line of this list to those below it:

    train                a training run
    reports              logs, tables and pictures
    prune                pruning: ranking, allocation, channels, corrections
    checkpoints          files of networks
    settings             a run's settings, command line and file names
    datasets, compute    data; the device and what is measured of a network
    process              errors, signals, writing files

tests/test_architecture.py checks this.
"""
