"""What is deployed over the control API: functions, versions and aliases behind one interface, and their code by content.

`records` are the values, `interface` is what a store has to offer, `sqlite` the one that a single host uses, `code` the
directory of contents.
"""
