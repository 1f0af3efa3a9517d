{{- define "triptych.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "triptych.labels" -}}
app.kubernetes.io/name: triptych
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* Of pods: what policies, budgets and services choose by. */ -}}
{{- define "triptych.selector" -}}
app.kubernetes.io/name: triptych
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "triptych.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "triptych.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.securityContext.runAsUser }}
runAsGroup: {{ .Values.securityContext.runAsGroup }}
fsGroup: {{ .Values.securityContext.fsGroup }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "triptych.containerSecurity" -}}
runAsNonRoot: true
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "triptych.resources" -}}
requests: {{ toJson .Values.servers.resources.requests }}
limits: {{ toJson (merge (dict) .Values.servers.resources.limits (ternary (dict "nvidia.com/gpu" .Values.servers.gpus) (dict) (gt (int .Values.servers.gpus) 0))) }}
{{- end }}

{{- define "triptych.volumes" -}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.servers.sharedMemory }}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.servers.temporary }}}
{{- if .Values.builds.claim }}
- name: models
  persistentVolumeClaim: {claimName: {{ .Values.builds.claim }}, readOnly: true}
{{- else if .Values.builds.image }}
- name: models
  image: {reference: {{ .Values.builds.image | quote }}, pullPolicy: {{ .Values.image.pullPolicy }}}
{{- end }}
{{- end }}

{{- define "triptych.mounts" -}}
- {name: shm, mountPath: /dev/shm}
- {name: tmp, mountPath: /tmp}
{{- if or .Values.builds.claim .Values.builds.image }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- end }}

{{- /* Where nothing but the pod's own folders can be written to. */ -}}
{{- define "triptych.environment" -}}
- {name: HOME, value: /tmp}
- {name: TRIPTYCH_STORE, value: /tmp/builds}
{{- with .Values.builds.credentials }}
{{ toYaml . }}
{{- end }}
{{- end }}
