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

# The package is noted after its installation, so that the next apply retries a failed one.
saltern_worker_package:
  cmd.run:
    - name: {{ (venv ~ '/bin/pip install --upgrade ' ~ package ~ ' && echo ' ~ package ~ ' > ' ~ venv ~ '/.saltern-worker') | tojson }}
    - unless: {{ ('grep -qxF -- ' ~ package ~ ' ' ~ venv ~ '/.saltern-worker') | tojson }}
    - require:
      - cmd: saltern_worker_venv
