"""The development stack: all of Saltern on one machine, for `make run` and for the integration tests.

Standard library only: `make run` starts it with the Python of a fresh Debian 12, before anything is installed.

    python3 -m devstack VERB     the verbs of the Makefile
    bootstrap                    Debian packages, .venv, the demo guest's image
    layout                       paths, ports, and the worker's data root
    config                       the generated settings of each part, as pure functions
    process                      daemons, identified by pid and start time
    stack                        the parts, their health, start and stop
    demo                         the VM that `make run` starts
    guests, hosts                images of virtual machines; hosts in emulation with other hypervisors
"""
