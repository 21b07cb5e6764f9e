"""Augmentation sets: many synthetic patches by a plan, with labels, hashes, a gate, shards and a card that says so.

- ``plan``: what the user writes (TOML), checked before anything is loaded.
- ``recipe``: the plan with everything looked up; what a set is bound to.
- ``slots``: the patches to be made, computed where they are asked for.
- ``maker``: makes one unit of slots (engine, gate, pixels as they are stored); needs nobody else.
- ``workers``: makers in this process, or in several of this machine.
- ``on_ray``: makers on a Ray cluster.
- ``journal``: one line a slot, and what is done after a crash.
- ``store``: the one writer of a set's folder.
- ``judge``: the report of a set beside real SAR.
- ``card``: the data card.
- ``run``: all of it, plan in, set out.
"""
