# Turns a Debian host into a worker, applied by its master or locally:
#   apt-get install python3-venv python3-dev gcc && python3 -m venv /opt/saltern && /opt/saltern/bin/pip install 'salt>=3008.3,<3009'
#   /opt/saltern/bin/salt-call --local --file-root=<clone>/states --pillar-root=<pillar> state.apply worker
include:
  - worker.install
  - worker.config
  - worker.service
