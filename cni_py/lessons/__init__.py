"""The exercises of docs/lessons: what each builds, what it asks for, and its check (``cni-py lesson``).

How it works. A lesson is a module with a `LESSON`: the lab that the page and its exercise are done in, what is added to it,
the task, and the requirements, each a question about the lab with a hint. `lesson.py` has the types and asks the questions,
`table.py` the lessons in their order, `session.py` starts and stops one, `progress.py` remembers which are passed, `facts.py`
is what questions have in common. A check reads what the kernel and the files have, never what was typed: each way to the
same state is right.

Owns: `/run/cni-py/lesson.json`, which names the lesson whose lab runs, and `lessons.json` in the user's state directory
(`progress.py`). All that an exercise creates is inside its lab.
"""
