{%- from 'master/map.jinja' import master %}

include:
  - master.install

# On loopback every user of the host could talk to salt-api. This admits only the gate.
saltern_salt_api_rules:
  file.managed:
    - name: {{ master.paths.etc }}/salt-api.nft
    - source: salt://master/files/salt-api.nft
    - template: jinja
    - makedirs: True

saltern_salt_api_firewall_package:
  pkg.installed:
    - name: nftables

saltern-salt-api-firewall_unit:
  file.managed:
    - name: {{ master.paths.units }}/saltern-salt-api-firewall.service
    - source: salt://master/files/saltern-salt-api-firewall.service
    - template: jinja
    - makedirs: True

saltern_salt_api_firewall:
  service.running:
    - name: saltern-salt-api-firewall
    - enable: True
    - require:
      - pkg: saltern_salt_api_firewall_package
      - user: saltern_gate_user
    - watch:
      - file: saltern_salt_api_rules
      - file: saltern-salt-api-firewall_unit
