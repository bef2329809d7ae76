{{/* The image: by digest if one is given. */}}
{{- define "weft.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* The port of a listen address of the configuration: key, the daemon's default, context. Empty: switched off. */}}
{{- define "weft.port" -}}
{{- $config := (index . 2).Values.config -}}
{{- $address := index . 1 -}}
{{- if hasKey $config (index . 0) -}}{{- $address = index $config (index . 0) -}}{{- end -}}
{{- if $address -}}{{ regexReplaceAll "^.*:" $address "" }}{{- end -}}
{{- end -}}

{{/* The host of probeAddress, for kubelet's probes: empty when it listens on all addresses. */}}
{{- define "weft.probeHost" -}}
{{- regexReplaceAll ":[0-9]+$" (.Values.config.probeAddress | default "127.0.0.1:9466") "" | trimAll "[]" -}}
{{- end -}}
