{{- define "ptalign.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "ptalign.labels" -}}
app.kubernetes.io/name: ptalign
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* Selector of one component: (list $ "server") */}}
{{- define "ptalign.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: ptalign
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "ptalign.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion .Values.profile) }}
{{- end -}}
{{- end }}

{{- define "ptalign.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "ptalign.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Pod fields that server and engines share: (list $ .Values.server) */}}
{{- define "ptalign.pod" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
serviceAccountName: {{ include "ptalign.fullname" $root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "ptalign.podSecurity" $root | nindent 2 }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Resources with the GPUs added: (list $ .Values.server) */}}
{{- define "ptalign.resources" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
{{- $extra := dict -}}
{{- if and (eq $root.Values.profile "gpu") (gt (int $part.gpus) 0) -}}
{{- $extra = dict $root.Values.gpuResource (int $part.gpus) -}}
{{- end -}}
{{- range $kind := list "requests" "limits" }}
{{ $kind }}:
  {{- toYaml (merge (deepCopy $extra) (index $part.resources $kind)) | nindent 2 }}
{{- end }}
{{- end }}

{{- define "ptalign.modelsYaml" -}}
{{ toYaml .Values.models }}
{{- end }}

{{- /* The catalogue entry that the engines serve */}}
{{- define "ptalign.engineModel" -}}
{{- $found := dict -}}
{{- range .Values.models }}{{ if eq .name $.Values.engines.model }}{{ $found = . }}{{ end }}{{ end -}}
{{- if not $found -}}
{{- $names := list -}}{{- range .Values.models }}{{ $names = append $names .name }}{{ end -}}
{{- fail (printf "engines.model %q is not in models (%s). Name one of them." .Values.engines.model (join ", " $names)) -}}
{{- end -}}
{{- toYaml $found -}}
{{- end }}

{{- /* What the schema cannot say in words that teach */}}
{{- define "ptalign.check" -}}
{{- $key := .Values.secrets.operatorKey -}}
{{- if not (or $key.existingSecret $key.command) -}}
{{- fail "secrets.operatorKey.existingSecret is empty. It wraps the keys of all record text; make it once and back it up, or set secrets.operatorKey.command: see docs/operations.md, Install." -}}
{{- end -}}
{{- if and $key.existingSecret $key.command -}}
{{- fail "secrets.operatorKey has both existingSecret and command. Keys come from one place: empty the one that does not hold the keys of this database." -}}
{{- end -}}
{{- if not .Values.secrets.tls.existingSecret -}}
{{- fail "secrets.tls.existingSecret is empty. The server refuses to listen off loopback without TLS: make a kubernetes.io/tls secret, for example with cert-manager." -}}
{{- end -}}
{{- if not .Values.models -}}
{{- fail "models is empty. Name at least one model with its folder under /models." -}}
{{- end -}}
{{- if not .Values.modelVolume.existingClaim -}}
{{- fail "modelVolume.existingClaim is empty. Make a claim that holds the weights; it is mounted read-only at /models." -}}
{{- end -}}
{{- if and .Values.engines.enabled (gt (len .Values.models) 1) -}}
{{- fail "models holds more than one entry, and engines of their own serve one. Make a release for each model, or set engines.enabled to false." -}}
{{- end -}}
{{- if and .Values.engines.enabled (not .Values.networkPolicy.enabled) -}}
{{- fail "networkPolicy.enabled is false. Engines answer whoever reaches their port: with engines of their own the policy that admits servers alone must be on." -}}
{{- end -}}
{{- $set := "STATE|PROFILE|HOST|PORT|(METRICS|PAGE)_(HOST|PORT)|PAGE|RETENTION_DAYS|MODELS_FILE|EVAL_DATA|TOKENS_FILE|KEY_(FILE|COMMAND)|AUTH__(TLS_CERT|TLS_KEY|CLIENT_CA)|EXECUTOR_ID|ENGINE__MAX_LORA_RANK|DATABASE|ARTEFACTS" -}}
{{- if .Values.engines.enabled -}}{{- $set = printf "%s|ENGINE__(KIND|URLS|MODEL)" $set -}}{{- end -}}
{{- if .Values.gate -}}{{- $set = printf "%s|GATE(__.*)?" $set -}}{{- end -}}
{{- range $variable, $_ := .Values.server.env -}}
{{- if regexMatch (printf "^PTALIGN_(%s)$" $set) $variable -}}
{{- fail (printf "server.env has %s, which the chart sets itself. Take it out, and change the value that it comes from (values.yaml)." $variable) -}}
{{- end -}}
{{- end -}}
{{- end }}
