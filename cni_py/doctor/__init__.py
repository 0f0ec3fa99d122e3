"""Find what is wrong with this node's pod network: facts, read once; rules, pure functions of the facts; findings.

    facts.py        what is known of a node: plain values          gather.py and its neighbours read them
    rules/          a module for each subject, a function for each rule: facts -> findings
    catalogue.py    every rule, with why it matters                examine.py evaluates them
    repair.py       what --fix may run                             bundle.py, redact.py: a report without secrets

A rule that cannot see what it needs is listed as not checked, with the reason: never as healthy. What flanneld restores within
a moment is no finding: such rules are evaluated again before they report.
"""
