# Which host becomes what is said by pillar, which the master decides: never by grains, which a minion says of itself.
base:
  'saltern:worker:*':
    - match: pillar
    - worker
  'saltern:master:*':
    - match: pillar
    - master
