{%- from 'worker/map.jinja' import has_libvirt, has_vbox, has_xen, worker %}
{%- set venv = worker.paths.venv %}
{%- set package = worker.package | quote %}
{%- set known = worker.hypervisor_packages %}
{%- set unknown = worker.hypervisors | reject('in', known) | list %}
{%- set packages = worker.packages | list %}
{%- for name in worker.hypervisors if name in known %}
{%- do packages.extend(known[name]) %}
{%- endfor %}
{%- set problem = '' %}
{%- if unknown or not worker.hypervisors %}
{%- set problem = 'saltern:worker:hypervisors is [' ~ worker.hypervisors | join(', ') ~ ']: name one or more of ' ~ known | sort | join(', ') ~ '.' %}
{%- elif has_vbox and not (salt['pkg.version']('virtualbox') or salt['pkg.latest_version']('virtualbox', refresh=False)) %}
{%- set problem = 'apt knows no package virtualbox: Debian has it in contrib of sid alone. Make this host a Debian sid, add contrib to its sources, and run apt-get update; or remove vbox from saltern:worker:hypervisors.' %}
{%- endif %}
{%- if problem %}

# Nothing is changed on a host that cannot become what its pillar says.
saltern_worker_hypervisors:
  test.fail_without_changes:
    - name: {{ problem | tojson }}
    - failhard: True
    - order: first
{%- endif %}

saltern_worker_packages:
  pkg.installed:
    - pkgs: {{ packages | unique | sort | tojson }}
{%- if not has_libvirt %}

# qemu-img reads untrusted images as this user, which libvirt's package would make.
saltern_worker_qemu_user:
  user.present:
    - name: {{ worker.settings.qemu_user | default('libvirt-qemu') }}
    - system: True
    - usergroup: True
    - createhome: False
    - home: /nonexistent
    - shell: /usr/sbin/nologin
{%- endif %}
{%- if has_xen %}

# Without this folder xenconsoled and libvirt's xen driver log nothing.
saltern_worker_xen_logs:
  file.directory:
    - name: /var/log/xen/console
    - makedirs: True
    - require:
      - pkg: saltern_worker_packages
{%- endif %}

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
