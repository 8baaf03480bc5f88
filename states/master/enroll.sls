{%- from 'master/map.jinja' import master %}
{%- set venv = master.paths.venv %}
{%- set host = master.settings.host | default('127.0.0.1') %}
{%- set here = '127.0.0.1' if host in ('0.0.0.0', '::') else host %}
{%- set saltern = venv ~ '/bin/saltern --url ' ~ ('https' if master.settings.tls_cert is defined else 'http') ~ '://' ~ here ~ ':' ~ (master.settings.port | default(8080)) ~ ' --token-file ' ~ master.paths.etc ~ '/admin.token' %}

# Enrolls the workers that the pillar names, as far as their minions' keys are accepted. Salt checks with those keys who
# wrote what into the mine, so the site trusts Salt's keys here instead of comparing fingerprints by hand.
{%- set mine = salt['saltutil.runner']('mine.get', tgt=master.workers, fun='vmachines.capabilities', tgt_type='list') if master.workers else {} %}
{%- for worker, capabilities in (mine if mine is mapping else {}) | dictsort if capabilities is mapping %}
{%- set found = capabilities.get('fingerprint', '') | string | regex_match('(ed25519:[A-Za-z0-9_-]{43})$') %}
{%- if found %}

saltern_enrolled_{{ worker }}:
  cmd.run:
    - name: {{ (saltern ~ ' workers enroll ' ~ (worker | quote) ~ ' ' ~ found[0]) | tojson }}
    - unless: {{ (saltern ~ ' workers -o json | ' ~ venv ~ '/bin/python -c \'import json, sys; sys.exit(sys.argv[1:] not in [[w["id"], w["fingerprint"]] for w in json.load(sys.stdin) if w["enrolled"]])\' ' ~ (worker | quote) ~ ' ' ~ found[0]) | tojson }}
{%- endif %}
{%- endfor %}
