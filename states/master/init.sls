{%- from 'master/map.jinja' import master %}
# Turns a Debian host into a master: the Salt master, salt-api on loopback, the gate, and the master service.
# It is applied locally, because there is no Salt master yet: see worker/init.sls, with `state.apply master`.
include:
  - master.install
  - master.config
  - master.service
{%- if master.salt_api_firewall %}
  - master.firewall
{%- endif %}
  - master.enroll
