"""Plans: what a call would change, found out by making it in a copy of the host; and the same changes as a shell script.

``tables.py`` reads the network of a namespace, ``state.py`` shows it as lines, ``namespaces.py`` finds those of the host;
``copying.py`` creates them again, ``state_files.py`` copies files, ``scratch.py`` runs a function in the copy and
discards it. ``rehearsal.py`` joins these for one call of a runtime; ``script.py`` turns its journal into a script. Changes
nothing on the host.
"""
