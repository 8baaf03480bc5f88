# Turns a Debian host into a master: the Salt master, salt-api on loopback, and the master service.
# By itself, since a Salt master is not there before: see worker/init.sls, with `state.apply master`.
include:
  - master.install
  - master.config
  - master.service
