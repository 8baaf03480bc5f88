{%- from 'worker/map.jinja' import worker %}
{%- set facade = worker.settings.facade %}
{%- set host = facade.host | default('127.0.0.1') %}
{%- set here = '127.0.0.1' if host in ('0.0.0.0', '::') else host %}

include:
  - worker.install
  - worker.config

saltern_worker_libvirtd:
  service.running:
    - name: libvirtd
    - enable: True
    - require:
      - pkg: saltern_worker_packages

saltern_worker_facade:
  service.running:
    - name: saltern-worker-facade
    - enable: True
    - require:
      - service: saltern_worker_libvirtd
    - watch:
      - cmd: saltern_worker_package
      - file: saltern_worker_settings
      - file: saltern_worker_tokens
      - file: saltern-worker-facade_unit
      - saltutil: saltern_worker_modules

# A service that runs may still end a moment later, and again and again: it is up when it answers.
saltern_worker_facade_answers:
  http.query:
    - name: {{ 'https' if facade.tls_cert is defined else 'http' }}://{{ here }}:{{ facade.port | default(8081) }}/healthz
    - status: 200
    - retry: {until: True, attempts: 60, interval: 1}
    - verify_ssl: False           # its own host asks; the certificate is for others' name of it
    - require:
      - service: saltern_worker_facade

saltern_worker_minion_enabled:
  service.enabled:
    - name: salt-minion
    - require:
      - file: salt-minion_unit

# The minion that runs this very job: restarted by somebody else, a moment later, so that the job's result is sent first.
saltern_worker_minion_restart:
  cmd.run:
    - name: systemctl daemon-reload && systemd-run --on-active=5 systemctl restart salt-minion.service
    - order: last
    - onchanges:
      - cmd: saltern_worker_package
      - file: saltern_worker_settings
      - file: saltern_worker_minion
      - file: saltern_worker_minion_site
      - file: salt-minion_unit
      - saltutil: saltern_worker_modules
