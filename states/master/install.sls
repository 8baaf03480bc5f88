{%- from 'master/map.jinja' import master %}
{%- set venv = master.paths.venv %}
{%- set wanted = (master.package | quote) ~ ' ' ~ (master.salt | quote) %}

saltern_master_packages:
  pkg.installed:
    - pkgs: {{ master.packages | tojson }}

saltern_master_venv:
  cmd.run:
    - name: python3 -m venv {{ venv | quote }}
    - creates: {{ venv }}/bin/pip
    - require:
      - pkg: saltern_master_packages

# The package is noted after its installation, so that the next apply retries a failed one.
saltern_master_package:
  cmd.run:
    - name: {{ (venv ~ '/bin/pip install --upgrade ' ~ wanted ~ ' && echo ' ~ wanted ~ ' > ' ~ venv ~ '/.saltern-master') | tojson }}
    - unless: {{ ('test "$(cat ' ~ venv ~ '/.saltern-master)" = "$(echo ' ~ wanted ~ ')"') | tojson }}
    - require:
      - cmd: saltern_master_venv

{%- for id, user in (('saltern_master_user', master.user), ('saltern_gate_user', master.gate_user)) %}

{{ id }}:
  user.present:
    - name: {{ user }}
    - system: True
    - usergroup: True
    - home: {{ master.paths.state }}
    - createhome: False
    - shell: /usr/sbin/nologin
{%- endfor %}
