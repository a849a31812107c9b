#!/usr/bin/env bash
# Ray with the home's volume and the secrets on a Kubernetes cluster, by KubeRay. Called again it
# brings what is there up to date. Needs kubectl, which knows the cluster, and helm.
set -euo pipefail

# The manifests, with your image in kustomization.yaml and your services in settings.env.
MANIFESTS=${MANIFESTS:-docker/kuberay}
# A folder whose files are the secrets: optuna_password, mlflow_user_password.
SECRETS=${SECRETS:-docker/secrets}
# Where the sweeps' pods live; one namespace holds one cluster `carft`.
NAMESPACE=${NAMESPACE:-carft}
# The operator: its charts and version, and where it lives. Nothing here where somebody else has
# installed it: OPERATOR=no.
OPERATOR=${OPERATOR:-yes}
CHARTS=${CHARTS:-https://ray-project.github.io/kuberay-helm/}
KUBERAY=${KUBERAY:-1.5.1}
OPERATOR_NAMESPACE=${OPERATOR_NAMESPACE:-kuberay-system}
# How long the head may take: its image has gigabytes.
PATIENCE=${PATIENCE:-20m}

wrong() {
  echo "deploy.sh: $*" >&2
  exit 2
}
for command in kubectl helm; do
  command -v "$command" >/dev/null || wrong "$command is not here"
done
for file in kustomization.yaml settings.env; do
  [ -f "$MANIFESTS/$file" ] || wrong "$MANIFESTS has no $file: say MANIFESTS=FOLDER"
  ! grep -qE '\.example(/|:|$)' "$MANIFESTS/$file" ||
    wrong "$MANIFESTS/$file still names an example: say your image there, and your services"
done
for file in optuna_password mlflow_user_password; do
  [ -s "$SECRETS/$file" ] || wrong "$SECRETS/$file is not there, or empty: say SECRETS=FOLDER"
done
policy=$MANIFESTS/network-policy.yaml # which lets the operator in, by its namespace
[ ! -f "$policy" ] || grep -qE "kubernetes.io/metadata.name: $OPERATOR_NAMESPACE( |$)" "$policy" ||
  wrong "$policy does not name the operator's namespace, $OPERATOR_NAMESPACE"

if [ "$OPERATOR" = yes ]; then
  helm upgrade --install kuberay-operator kuberay-operator --repo "$CHARTS" --version "$KUBERAY" \
    --namespace "$OPERATOR_NAMESPACE" --create-namespace --wait
fi

kubectl create namespace "$NAMESPACE" --dry-run=client --output=yaml | kubectl apply --filename=-
# By file, since other users of this machine see command lines; on the server's side, since `apply`
# would otherwise keep what was applied in an annotation, secrets and all.
kubectl create secret generic carft-secrets --namespace="$NAMESPACE" \
  --from-file="optuna_password=$SECRETS/optuna_password" \
  --from-file="mlflow_user_password=$SECRETS/mlflow_user_password" \
  --dry-run=client --output=yaml | kubectl apply --server-side --filename=-
kubectl apply --namespace="$NAMESPACE" --kustomize="$MANIFESTS"

kubectl wait --namespace="$NAMESPACE" --for=condition=HeadPodReady raycluster/carft \
  --timeout="$PATIENCE"
kubectl get pods --namespace="$NAMESPACE" --selector=ray.io/cluster=carft
