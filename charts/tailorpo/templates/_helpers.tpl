{{/* Begins the names in the release's namespace; short enough for what is added to it. */}}
{{- define "tailorpo.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains "tailorpo" .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-tailorpo" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tailorpo.operator" -}}
{{- include "tailorpo.fullname" . }}-operator
{{- end -}}

{{/* Names of what marks the operator of the whole cluster, or of a namespace. They do not depend on the release, so that
     Helm refuses a second one. */}}
{{- define "tailorpo.rights" -}}
tailorpo-operator
{{- end -}}

{{/* By these the Deployment finds its pods. They can never change: no version, no label of a user. */}}
{{- define "tailorpo.selectorLabels" -}}
app.kubernetes.io/name: tailorpo-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* Takes root, and component: for what is no part of the operator itself. */}}
{{- define "tailorpo.labels" -}}
{{- $labels := include "tailorpo.selectorLabels" .root | fromYaml -}}
{{- if .component -}}
{{- $_ := set $labels "app.kubernetes.io/name" "tailorpo" -}}
{{- $_ := set $labels "app.kubernetes.io/component" .component -}}
{{- end -}}
{{- $chart := printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" -}}
{{- $_ := set $labels "helm.sh/chart" $chart -}}
{{- $_ := set $labels "app.kubernetes.io/version" (.root.Chart.AppVersion | replace "+" "_" | trunc 63) -}}
{{- $_ := set $labels "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $labels "app.kubernetes.io/part-of" "tailorpo" -}}
{{- merge $labels (.root.Values.commonLabels | default dict) | toYaml -}}
{{- end -}}

{{/* Takes root, and labels: those of a monitor or rule. */}}
{{- define "tailorpo.labelsWith" -}}
{{- $labels := include "tailorpo.labels" . | fromYaml -}}
{{- merge $labels (.labels | default dict) | toYaml -}}
{{- end -}}

{{- define "tailorpo.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "tailorpo.operator" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* The reference of an image. Takes root, image. */}}
{{- define "tailorpo.image" -}}
{{- $registry := (.root.Values.global).imageRegistry | default .image.registry -}}
{{- $name := .image.repository -}}
{{- if $registry -}}
{{- $name = printf "%s/%s" (trimSuffix "/" $registry) $name -}}
{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The rights of the operator. It reads no Secrets, creates no pods itself, and changes no object except a job's status. */}}
{{- define "tailorpo.rules" -}}
- apiGroups: [tailorpo.dev]
  resources: [tailorpojobs]
  verbs: [get, list, watch, delete] # delete: for ttlSecondsAfterFinished
- apiGroups: [tailorpo.dev]
  resources: [tailorpojobs/status]
  verbs: [patch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [create]
- apiGroups: [""]
  resources: [services]
  resourceNames: [tailorpo-rendezvous] # no other Service
  verbs: [get, list, watch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete] # delete: pods of lost nodes, which no controller deletes
- apiGroups: [""]
  resources: [events]
  verbs: [list, create] # list: to find out why a Job could not create its pods
{{- end -}}

{{/* Fails where the Prometheus Operator's objects are wanted and unknown. Takes root, value. */}}
{{- define "tailorpo.needsMonitoring" -}}
{{- if not (.root.Capabilities.APIVersions.Has "monitoring.coreos.com/v1") -}}
{{- fail (printf "%s is true, but this cluster does not serve monitoring.coreos.com/v1: install the Prometheus Operator first, or set it to false. Where no cluster is asked, as by `helm template`, add --api-versions monitoring.coreos.com/v1" .value) -}}
{{- end -}}
{{- end -}}

{{/* A probe of the operator. Takes path, times: fields that are added, or replace others. */}}
{{- define "tailorpo.probe" -}}
{{- $probe := dict "httpGet" (dict "path" .path "port" "http") -}}
{{- mergeOverwrite $probe (.times | default dict) | toYaml -}}
{{- end -}}

{{/* What all endpoints of monitors have. honorLabels: the metrics' own `job` and `namespace` are those of a TailorPOJob. */}}
{{- define "tailorpo.endpoint" -}}
honorLabels: true
{{- with .interval }}
interval: {{ . }}
{{- end }}
{{- with .relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
