include:
  - master.install
  - master.config

# In this order: the service asks salt-api, which asks the Salt master.
{%- for unit in ('salt-master', 'salt-api') %}

{{ unit }}_service:
  service.running:
    - name: {{ unit }}
    - enable: True
    - watch:
      - cmd: saltern_master_package
      - cmd: saltern_master_sharedsecret
      - file: saltern_master_salt
      - file: saltern_master_salt_site
      - file: {{ unit }}_unit
{%- endfor %}

saltern_master_service:
  service.running:
    - name: saltern-master
    - enable: True
    - require:
      - service: salt-api_service
    - watch:
      - cmd: saltern_master_package
      - file: saltern_master_settings
      - file: saltern_master_salt-api.secret
      - file: saltern_master_admin.token
      - file: saltern-master_unit
