{%- from 'worker/map.jinja' import has_libvirt, has_vbox, has_xen, worker %}
{%- set api = worker.settings.api %}
{%- set host = api.host | default('127.0.0.1') %}
{%- set here = '127.0.0.1' if host in ('0.0.0.0', '::') else host %}

include:
  - worker.install
  - worker.config

{%- if has_libvirt %}
saltern_worker_libvirtd:
  service.running:
    - name: libvirtd
    - enable: True
{%- if worker.hypervisors == ['kvm'] %}
    - require:
{%- else %}
    - watch:                      # it loads drivers when it starts
{%- endif %}
      - pkg: saltern_worker_packages
{%- endif %}

{%- if has_xen %}

# A boot into Xen uses it: Debian's GRUB then starts Xen by itself.
saltern_worker_xen_grub:
  cmd.run:
    - name: update-grub
    - onlyif: command -v update-grub
    - onchanges:
      - file: saltern_worker_xen_memory

# It would save the memory of VMs at a shutdown of the host, past libvirt, and bring them back at the next boot.
saltern_worker_xen_no_xendomains:
  service.disabled:
    - name: xendomains
    - require:
      - pkg: saltern_worker_packages

saltern_worker_xen_dom0:
  service.enabled:
    - name: saltern-xen-dom0
    - require:
      - file: saltern-xen-dom0_unit
{%- endif %}

{%- if has_vbox %}

# It loads the kernel modules that dkms has built.
saltern_worker_vbox_modules:
  service.running:
    - name: virtualbox
    - enable: True
    - require:
      - pkg: saltern_worker_packages

# VMs are its children, and so they run outside of the sandbox of the worker API.
saltern_worker_vboxsvc:
  service.running:
    - name: saltern-vboxsvc
    - enable: True
    - require:
      - service: saltern_worker_vbox_modules
      - file: saltern-vboxsvc_unit
{%- endif %}

{%- if worker.guest_firewall and 'kvm' in worker.hypervisors %}

{%- for unit in ('saltern-guest-firewall.service', 'saltern-guest-firewall.path') %}

{{ unit }}_enabled:
  service.enabled:
    - name: {{ unit }}
    - require:
      - file: saltern-guest-firewall_unit
      - file: saltern-guest-firewall.path_unit
{%- endfor %}

saltern_worker_guest_firewall:
  cmd.run:
    - name: systemctl daemon-reload && systemctl start saltern-guest-firewall.path && systemctl restart saltern-guest-firewall.service
    - unless: {{ (worker.paths.venv ~ '/bin/python -m worker_service.hypervisor.guest_firewall --settings ' ~ worker.paths.etc ~ '/worker.toml check') | tojson }}
    - require:
      - cmd: saltern_worker_package
      - file: saltern_worker_settings
      - service: saltern-guest-firewall.service_enabled

saltern_worker_guest_firewall_changed:
  cmd.run:
    - name: systemctl restart saltern-guest-firewall.service
    - onchanges:
      - file: saltern_worker_settings
    - require:
      - cmd: saltern_worker_guest_firewall
{%- endif %}

# The unit's name in version 0.1. It must free the port before the unit of today starts.
saltern_worker_old_api_stopped:
  service.dead:
    - name: saltern-worker-facade
    - enable: False

saltern_worker_old_api_removed:
  file.absent:
    - name: {{ worker.paths.units }}/saltern-worker-facade.service
    - require:
      - service: saltern_worker_old_api_stopped

saltern_worker_api:
  service.running:
    - name: saltern-worker-api
    - enable: True
    - require:
{%- if has_libvirt %}
      - service: saltern_worker_libvirtd
{%- endif %}
{%- if has_vbox %}
      - service: saltern_worker_vboxsvc
{%- endif %}
      - file: saltern_worker_old_api_removed
    - watch:
      - cmd: saltern_worker_package
      - file: saltern_worker_settings
      - file: saltern_worker_tokens
      - file: saltern-worker-api_unit
      - saltutil: saltern_worker_modules

# A service that runs may still end a moment later, and again and again. It is up once it answers.
saltern_worker_api_answers:
  http.query:
    - name: {{ 'https' if api.tls_cert is defined else 'http' }}://{{ here }}:{{ api.port | default(8081) }}/healthz
    - status: 200
    - retry: {until: True, attempts: 60, interval: 1}
    - verify_ssl: False           # the certificate has the name that other hosts use
    - require:
      - service: saltern_worker_api

saltern_worker_minion_enabled:
  service.enabled:
    - name: salt-minion
    - require:
      - file: salt-minion_unit

# This job runs in the minion. systemd restarts it a moment later, so that the job's result is sent first. Without an
# accuracy systemd may let a minute pass.
saltern_worker_minion_restart:
  cmd.run:
    - name: systemctl daemon-reload && systemd-run --on-active=5 --timer-property=AccuracySec=100ms systemctl restart salt-minion.service
    - order: last
    - onchanges:
      - cmd: saltern_worker_package
      - file: saltern_worker_settings
      - file: saltern_worker_minion
      - file: saltern_worker_minion_site
      - file: salt-minion_unit
      - saltutil: saltern_worker_modules
