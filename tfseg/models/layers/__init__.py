"""Layers whose variables carry their TF1 checkpoint names.

Every variable is made in its layer's constructor, under its full name
(`xception_65/entry_flow/conv1_1/weights`), with a value that depends on nothing but the seed, the
network's name and the variable's name. So a network is complete before it sees an image, two
networks of different names start differently, and the order of construction does not matter.

Source: PseudoSeg specification 4.2-4.5 for padding, initial values, decay and epsilon.
"""
