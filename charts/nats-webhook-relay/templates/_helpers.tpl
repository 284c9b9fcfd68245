{{- define "relay.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "relay.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "relay.labels" -}}
{{ include "relay.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "relay.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "relay.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* A value of a variable as text. Helm reads whole numbers as floating-point ones, which would become 1e+06. */}}
{{- define "relay.text" -}}
{{- if kindIs "float64" . -}}{{ printf "%d" (int64 .) }}{{- else -}}{{ toString . }}{{- end -}}
{{- end -}}

{{/* The variables that have a value: those of the chart, and config, which takes precedence. */}}
{{- define "relay.config" -}}
{{- $config := dict "HTTP_LISTEN" "0.0.0.0:9090" "PLUGIN_CACHE" "/var/cache/nats-webhook-relay/compiled" -}}
{{- if eq .Values.command "gateway" -}}
{{- $_ := set $config "GATEWAY_LISTEN" "0.0.0.0:8080" -}}
{{- end -}}
{{- if .Values.plugins.volume -}}
{{- $paths := list -}}
{{- range .Values.plugins.files -}}{{- $paths = append $paths (printf "/plugins/%s" .) -}}{{- end -}}
{{- $_ := set $config "PLUGINS" (default "/plugins" (join ":" $paths)) -}}
{{- end -}}
{{- range $name, $value := .Values.config -}}
{{- $_ := set $config $name (include "relay.text" $value) -}}
{{- end -}}
{{- range $name, $file := .Values.secretFiles -}}
{{- if hasKey $.Values.config $name -}}
{{- fail (printf "%s is in both config and secretFiles; keep one" $name) -}}
{{- end -}}
{{/* For these, the value is a path itself. */}}
{{- $isPath := has $name (list "NATS_CA" "NATS_CERT" "NATS_CREDS" "NATS_KEY" "NATS_NKEY" "WEBHOOK_CA" "WEBHOOK_CERT" "WEBHOOK_KEY" "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE") -}}
{{- $_ := set $config (ternary $name (printf "%s_FILE" $name) $isPath) (printf "/run/secrets/nats-webhook-relay/%s" $name) -}}
{{- end -}}
{{- toJson $config -}}
{{- end -}}

{{/* The port of an address such as HTTP_LISTEN. */}}
{{- define "relay.port" -}}
{{- $port := regexFind "[0-9]+$" (get (include "relay.config" .root | fromJson) .name) -}}
{{- required (printf "config.%s must end with a port, such as 0.0.0.0:9090" .name) $port -}}
{{- end -}}
