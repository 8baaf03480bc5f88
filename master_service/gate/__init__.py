"""The gate: a service of its own between the master and salt-api, which passes exactly what the master needs.

Salt's account checks only the name of a function. The other parameters of a request can write files and run programs as
root on each worker. So the gate alone knows that account's password. It builds every request to salt-api itself, from
the few typed fields that it accepts.
"""
