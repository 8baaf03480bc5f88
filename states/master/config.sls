{%- from 'master/map.jinja' import master %}
{%- set paths = master.paths %}

saltern_master_settings:
  file.managed:
    - name: {{ paths.etc }}/master.toml
    - source: salt://master/files/master.toml.jinja
    - template: jinja
    - makedirs: True
    - user: {{ master.user }}
    - mode: '0600'                # a database URL may hold a password

saltern_master_state:
  file.directory:
    - name: {{ paths.state }}
    - makedirs: True
    - user: {{ master.user }}
    - mode: '0700'

saltern_gate_settings:
  file.managed:
    - name: {{ paths.etc }}/gate.toml
    - source: salt://master/files/gate.toml.jinja
    - template: jinja
    - makedirs: True
    - mode: '0644'

# Two secrets, made on this host. They are neither in pillar nor in the arguments or results of any job.
{%- for secret, user in (('salt-api.secret', master.gate_user), ('admin.token', master.user)) %}
{%- set path = paths.etc ~ '/' ~ secret %}

saltern_master_{{ secret }}:
  cmd.run:
    # It gets its name only once it is complete: an empty file would count as a secret.
    - name: {{ ('umask 077 && openssl rand -hex 32 > ' ~ path ~ '.new && mv ' ~ path ~ '.new ' ~ path) | tojson }}
    - creates: {{ path }}
    - require:
      - file: saltern_master_settings
  file.managed:
    - name: {{ path }}
    - replace: False
    - user: {{ user }}
    - mode: '0600'
    - require:
      - cmd: saltern_master_{{ secret }}
{%- endfor %}

saltern_master_salt:
  file.managed:
    - name: {{ paths.salt }}/master.d/saltern.conf
    - source: salt://master/files/master.conf
    - makedirs: True

saltern_master_salt_profile:
{%- if master.profile == 'shared' %}
  file.absent:
    - name: {{ paths.salt }}/master.d/saltern_dedicated.conf
{%- else %}
  file.managed:
    - name: {{ paths.salt }}/master.d/saltern_dedicated.conf
    - source: salt://master/files/master_dedicated.conf
    - makedirs: True
{%- endif %}

# `_` sorts after `.`: Salt reads this and the next after saltern.conf, and the later file wins.
saltern_master_salt_site:
  file.serialize:
    - name: {{ paths.salt }}/master.d/saltern_site.conf
    - serializer: yaml
    - makedirs: True
    - dataset: {{ dict(master.salt_master, engines_dirs=[paths.etc ~ '/engines'], netapi_dirs=[paths.etc ~ '/netapi']) | tojson }}

saltern_master_engine:
  file.managed:
    - name: {{ paths.etc }}/engines/saltern_events.py
    - source: salt://_engines/saltern_events.py
    - makedirs: True

{%- set secret = paths.etc ~ '/salt-api.secret' %}
{%- set target = paths.salt ~ '/master.d/saltern_secret.conf' %}

saltern_master_netapi:
  file.managed:
    - name: {{ paths.etc }}/netapi/rest_cherrypy/__init__.py
    - source: salt://_netapi/rest_cherrypy/__init__.py
    - makedirs: True

saltern_master_sharedsecret:
  cmd.run:
    # Through pipes: every user of the host can see the arguments of a program.
    - name: {{ ('umask 077 && sed "s/^/sharedsecret: /" ' ~ secret ~ ' > ' ~ target) | tojson }}
    - unless: {{ ('sed "s/^/sharedsecret: /" ' ~ secret ~ ' | cmp -s - ' ~ target) | tojson }}
    - require:
      - file: saltern_master_salt
      - file: saltern_master_salt-api.secret

{%- for unit in ('saltern-master', 'saltern-gate', 'salt-master', 'salt-api') %}

{{ unit }}_unit:
  file.managed:
    - name: {{ paths.units }}/{{ unit }}.service
    - source: salt://master/files/{{ unit }}.service
    - template: jinja
    - makedirs: True
{%- endfor %}
