"""Explanations of journals: what each change was for, and why it was made. Pure: text in, text out, nothing is looked up.

``calls.py`` reads a journal, ``words.py`` splits its commands; ``recognise.py`` finds what each is for, by the table in
``shapes.py`` and, for packet filters, by ``filters.py``; ``reasons.py`` says what asked for it; ``commands.py`` shows a command
as a person could type it; ``steps.py`` joins these, ``text.py`` lays them out.
"""
