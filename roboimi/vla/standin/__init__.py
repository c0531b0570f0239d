"""Trains the tiny vision tower that stands in for SigLIP2 where no hub and no GPU are at hand.

    python -m roboimi.vla.standin train --out FOLDER         render scenes, train, measure, write weights and their card
    python -m roboimi.vla.standin probe --encoder standin    how well a frozen tower's feature says where the cube is

A randomly initialised tower is nearly blind in its pooled feature (a linear probe misses the cube by centimetres), and
the task forgives 1 to 1.5 cm; so a campaign on random weights would compare policies that cannot see. The tower trained
here is a real `SiglipVisionModel`, supervised with the cube's position in renders of this one task, and frozen like any
other.
"""
