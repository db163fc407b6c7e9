{{- /* The server's settings. Every PTALIGN_ name here is one that something reads: a test compares them. */}}
{{- define "ptalign.serverEnv" -}}
{{- $name := include "ptalign.fullname" . -}}
- {name: PTALIGN_STATE, value: /var/lib/ptalign}
- {name: PTALIGN_PROFILE, value: {{ .Values.profile }}}
- {name: PTALIGN_HOST, value: "0.0.0.0"}
- {name: PTALIGN_PORT, value: "50051"}
- {name: PTALIGN_METRICS_HOST, value: "0.0.0.0"}
- {name: PTALIGN_METRICS_PORT, value: "9464"}
- {name: PTALIGN_PAGE, value: {{ .Values.page.enabled | quote }}}
{{- if .Values.page.enabled }}
- {name: PTALIGN_PAGE_HOST, value: "0.0.0.0"}
- {name: PTALIGN_PAGE_PORT, value: "8080"}
{{- end }}
- {name: PTALIGN_RETENTION_DAYS, value: {{ .Values.retentionDays | quote }}}
{{- with .Values.gate }}
- {name: PTALIGN_GATE, value: {{ toJson . | squote }}}
{{- end }}
- {name: PTALIGN_MODELS_FILE, value: /etc/ptalign/catalogue/models.yaml}
{{- with .Values.modelVolume.evalData }}
- {name: PTALIGN_EVAL_DATA, value: {{ . | quote }}}
{{- end }}
{{- if .Values.secrets.tokens.existingSecret }}
- {name: PTALIGN_TOKENS_FILE, value: /etc/ptalign/tokens/tokens.json}
{{- end }}
{{- with .Values.secrets.operatorKey.command }}
- {name: PTALIGN_KEY_COMMAND, value: {{ . | quote }}}
{{- else }}
- {name: PTALIGN_KEY_FILE, value: /etc/ptalign/key/operator.key}
{{- end }}
- {name: PTALIGN_AUTH__TLS_CERT, value: /etc/ptalign/tls/tls.crt}
- {name: PTALIGN_AUTH__TLS_KEY, value: /etc/ptalign/tls/tls.key}
{{- if .Values.secrets.tls.mutual }}
- {name: PTALIGN_AUTH__CLIENT_CA, value: /etc/ptalign/tls/ca.crt}
{{- end }}
- name: PTALIGN_EXECUTOR_ID
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- {name: PTALIGN_ENGINE__MAX_LORA_RANK, value: {{ .Values.engines.maxLoraRank | quote }}}
{{- with .Values.database.existingSecret }}
- name: PTALIGN_DATABASE
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $.Values.database.key }}}}
{{- end }}
{{- with .Values.objectStore.url }}
- {name: PTALIGN_ARTEFACTS, value: {{ . | quote }}}
{{- end }}
{{- if .Values.engines.enabled }}
{{- $urls := list }}
{{- range $i := until (int .Values.engines.replicas) }}
{{- $urls = append $urls (printf "http://%s-engine-%d.%s-engines:8100/v1" $name $i $name) }}
{{- end }}
- {name: PTALIGN_ENGINE__KIND, value: remote}
- {name: PTALIGN_ENGINE__URLS, value: {{ $urls | toJson | squote }}}
- {name: PTALIGN_ENGINE__MODEL, value: {{ .Values.engines.model | quote }}}
{{- end }}
{{- range $variable, $value := .Values.server.env }}
- {name: {{ $variable }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}
