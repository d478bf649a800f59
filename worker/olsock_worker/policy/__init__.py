"""What to keep, for how long, and what to make ahead: decisions alone, without clocks, processes or the event loop.

gdsf: who has to go when there is no room. keepalive: how long an idle function stays, and when it is due.
demand: how many blanks a zygote keeps. timers: what is due when.
"""
