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
