{%- from 'worker/map.jinja' import worker %}
{%- set venv = worker.paths.venv %}
{%- set package = worker.package | quote %}

saltern_worker_packages:
  pkg.installed:
    - pkgs: {{ worker.packages | tojson }}

saltern_worker_venv:
  cmd.run:
    - name: python3 -m venv {{ venv | quote }}
    - creates: {{ venv }}/bin/pip
    - require:
      - pkg: saltern_worker_packages

# What was installed is noted after it was: one that failed is tried again by the next apply.
saltern_worker_package:
  cmd.run:
    - name: {{ (venv ~ '/bin/pip install --upgrade ' ~ package ~ ' && echo ' ~ package ~ ' > ' ~ venv ~ '/.saltern-worker') | tojson }}
    - unless: {{ ('grep -qxF -- ' ~ package ~ ' ' ~ venv ~ '/.saltern-worker') | tojson }}
    - require:
      - cmd: saltern_worker_venv
