"""The escape suite: hostile code that knows where everything is tries to get out of the sandbox.

    make test-sandbox        all of it, as root with the agents' account and as an ordinary user, and a table
    pytest tests/test_escapes.py

Each case runs the attack in the jail that a runner makes for a real attempt, and the same attack as its control: without
the jail, by the same account. The control has to succeed, else the case proves nothing, and fails. Where a control cannot
be had on this host (only root may, the kernel has no such thing) the table says so.

attacker.py, reaching.py, calls.py, trying.py
                        what runs inside: one function per case, plain Python, no imports but the standard library's
victim.py               a process of the attacker's own user that holds secrets in every way a process can
arena.py, findings.py   folders, the two ways to run the attacker, and what comes out
cases.py                the cases that are lists of attempts and the answers a jail may give; the others are in
                        starts.py, collecting.py, endings.py, calls_out.py, failures.py (with broken.py), tools.py
situations.py           from outside: a worker process for each situation (worker.py), and what an ordinary user needs
                        to run one
table.py, __main__.py   the table

Where no sandbox can be set up the suite fails: agents would not run there either.
"""
