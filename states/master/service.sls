{%- from 'master/map.jinja' import master %}
{%- set settings = master.settings %}
{%- set host = settings.host | default('127.0.0.1') %}
{%- set here = '127.0.0.1' if host in ('0.0.0.0', '::') else host %}

include:
  - master.install
  - master.config

# In this order: the service calls the gate, which calls salt-api, which calls the Salt master.
{%- for unit in ('salt-master', 'salt-api') %}

{{ unit }}_service:
  service.running:
    - name: {{ unit }}
    - enable: True
    - watch:
      - cmd: saltern_master_package
      - cmd: saltern_master_sharedsecret
      - file: saltern_master_salt
      - file: saltern_master_salt_profile
      - file: saltern_master_salt_site
      - file: saltern_master_engine
      - file: saltern_master_netapi
      - file: {{ unit }}_unit
{%- endfor %}

saltern_gate_service:
  service.running:
    - name: saltern-gate
    - enable: True
    - require:
      - service: salt-api_service
    - watch:
      - cmd: saltern_master_package
      - file: saltern_gate_settings
      - file: saltern_master_salt-api.secret
      - file: saltern-gate_unit

saltern_master_service:
  service.running:
    - name: saltern-master
    - enable: True
    - require:
      - service: saltern_gate_service
    - watch:
      - cmd: saltern_master_package
      - file: saltern_master_settings
      - file: saltern_master_admin.token
      - file: saltern-master_unit

# Services that run may still end a moment later, and again and again. They are up once they answer.
saltern_gate_answers:
  cmd.run:
    - name: {{ (master.paths.venv ~ '/bin/python -m master_service.gate --check --settings ' ~ master.paths.etc ~ '/gate.toml') | tojson }}
    - retry: {until: True, attempts: 60, interval: 1}
    - onchanges:
      - service: saltern_gate_service

saltern_master_service_answers:
  http.query:
    - name: {{ 'https' if settings.tls_cert is defined else 'http' }}://{{ here }}:{{ settings.port | default(8080) }}/healthz
    - status: 200
    - retry: {until: True, attempts: 60, interval: 1}
    - verify_ssl: False           # the certificate has the name that other hosts use
    - require:
      - service: saltern_master_service
