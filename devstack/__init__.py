"""The development stack: everything of Saltern on one machine, for `make run` and for the integration tests.

Standard library only: `make run` starts it with the Python of a fresh Debian 12, before anything is installed.

    python3 -m devstack VERB     the verbs of the Makefile
    bootstrap                    Debian packages, .venv, the demo guest's image
    layout                       where everything lies: paths, ports, data root
    config                       the generated settings of each part, as pure functions
    process                      daemons that are recognised again, never confused with a recycled pid
    stack                        the parts, their health, start and stop
    demo                         the VM that `make run` shows
"""
