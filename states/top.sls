# The pillar decides the role of a host, because the master controls it. A minion sets its own grains.
base:
  'saltern:worker:*':
    - match: pillar
    - worker
  'saltern:master:*':
    - match: pillar
    - master
