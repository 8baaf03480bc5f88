{%- from 'worker/map.jinja' import has_vbox, has_xen, worker %}
{%- set paths = worker.paths %}

saltern_worker_settings:
  file.managed:
    - name: {{ paths.etc }}/worker.toml
    - source: salt://worker/files/worker.toml.jinja
    - template: jinja
    - makedirs: True
    - mode: '0644'

# The file has only digests of tokens. It is still private, because it shows the rights of each caller.
saltern_worker_tokens:
  file.managed:
    - name: {{ paths.etc }}/worker.tokens
    - source: salt://worker/files/worker.tokens.jinja
    - template: jinja
    - makedirs: True
    - mode: '0600'

# The worker itself closes it to all but root and QEMU's user.
saltern_worker_data_root:
  file.directory:
    - name: {{ worker.settings.data_root }}
    - makedirs: True

saltern_worker_minion:
  file.managed:
    - name: {{ paths.salt }}/minion.d/saltern.conf
    - source: salt://worker/files/minion.conf
    - makedirs: True

# `_` sorts after `.`: Salt reads this after saltern.conf, and the later file wins.
saltern_worker_minion_site:
  file.serialize:
    - name: {{ paths.salt }}/minion.d/saltern_site.conf
    - serializer: yaml
    - makedirs: True
    - dataset: {{ dict(worker.minion, saltern={'settings': paths.etc ~ '/worker.toml'}) | tojson }}

# The modules, the engine and the grains of states/. They are not in the package: Salt would load both copies.
saltern_worker_modules:
  saltutil.sync_all:
    - refresh: True

{%- set units = ['saltern-worker-api.service', 'salt-minion.service', 'saltern-guest-firewall.service', 'saltern-guest-firewall.path'] %}
{%- do units.append('saltern-xen-dom0.service') if has_xen %}
{%- do units.append('saltern-vboxsvc.service') if has_vbox %}
{%- for unit in units %}

{{ unit.removesuffix('.service') }}_unit:
  file.managed:
    - name: {{ paths.units }}/{{ unit }}
    - source: salt://worker/files/{{ unit }}
    - template: jinja
    - makedirs: True
{%- endfor %}
{%- if has_xen %}

# Without a fixed size libvirt takes memory from dom0 for each guest, until dom0 has none.
saltern_worker_xen_memory:
  file.managed:
    - name: {{ paths.grub }}/saltern.cfg
    - contents: GRUB_CMDLINE_XEN_DEFAULT="$GRUB_CMDLINE_XEN_DEFAULT dom0_mem={{ worker.xen.dom0_mem_mib }}M,max:{{ worker.xen.dom0_mem_mib }}M"
    - makedirs: True
{%- endif %}
