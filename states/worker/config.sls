{%- from 'worker/map.jinja' import worker %}
{%- set paths = worker.paths %}

saltern_worker_settings:
  file.managed:
    - name: {{ paths.etc }}/worker.toml
    - source: salt://worker/files/worker.toml.jinja
    - template: jinja
    - makedirs: True
    - mode: '0644'

# Digests of tokens: who reads them cannot use them, and still it is nobody's business who may do what.
saltern_worker_tokens:
  file.managed:
    - name: {{ paths.etc }}/worker.tokens
    - source: salt://worker/files/worker.tokens.jinja
    - template: jinja
    - makedirs: True
    - mode: '0600'

# Not hidden: QEMU, another user, has to get to its disks. Nothing in it is secret but disks, whose modes libvirt sets.
saltern_worker_data_root:
  file.directory:
    - name: {{ worker.settings.data_root }}
    - makedirs: True
    - mode: '0755'

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

# The doors, the engine and the grains of states/. They are not in the package: Salt would load both.
saltern_worker_modules:
  saltutil.sync_all:
    - refresh: True

{%- for unit in ('saltern-worker-facade', 'salt-minion') %}

{{ unit }}_unit:
  file.managed:
    - name: {{ paths.units }}/{{ unit }}.service
    - source: salt://worker/files/{{ unit }}.service
    - template: jinja
    - makedirs: True
{%- endfor %}
