"""Our proto files against the descriptors that others ship: every name, number and type of ours is theirs."""

import importlib.resources
import subprocess
import sys
import tempfile

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from harness import ROOT

PROTO = ROOT / "runtime" / "server" / "proto"
Field = descriptor_pb2.FieldDescriptorProto


def ours(name):
    """A proto file of ours, compiled."""
    with tempfile.NamedTemporaryFile() as out:
        well_known = importlib.resources.files("grpc_tools") / "_proto"
        arguments = ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--descriptor_set_out={out.name}"]
        assert protoc.main([*arguments, name]) == 0, name
        (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read()).file
        return file


def theirs(*modules):
    """Descriptors that others ship. Each is read in a process of its own: their names are the same."""
    files = []
    for module in modules:
        code = f"import sys, {module} as m; sys.stdout.buffer.write(m.DESCRIPTOR.serialized_pb)"
        read = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
        files.append(descriptor_pb2.FileDescriptorProto.FromString(read.stdout))
    return files


def fields(files):
    """Every field by its full name: number, type, label, the type's name, and whether it is in a oneof."""
    found = {}

    def walk(message, prefix):
        for field in message.field:
            found[f"{prefix}{message.name}.{field.name}"] = (
                field.number, Field.Type.Name(field.type), Field.Label.Name(field.label),
                field.type_name.lstrip("."), field.HasField("oneof_index"),
            )
        for nested in message.nested_type:
            walk(nested, f"{prefix}{message.name}.")

    for file in files:
        for message in file.message_type:
            walk(message, "")
    return found


def enums(files):
    found = {}
    for file in files:
        listed = [("", enum) for enum in file.enum_type]
        listed += [(m.name + ".", enum) for m in file.message_type for enum in m.enum_type]
        for prefix, enum in listed:
            found[prefix + enum.name] = {value.name: value.number for value in enum.value}
    return found


def methods(files):
    return {
        f"{file.package}.{service.name}.{method.name}": (
            method.input_type, method.output_type, method.client_streaming, method.server_streaming
        )
        for file in files
        for service in file.service
        for method in service.method
    }


def check_the_inference_protocol(node):
    own = [ours("open_inference.proto")]
    other = theirs("tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2")
    known = fields(other)
    # KServe's answers to load and unload; Triton's have no fields.
    apart = [
        f"RepositoryModel{verb}Response.{field}"
        for verb, done in [("Load", "isLoaded"), ("Unload", "isUnloaded")]
        for field in ["model_name", done]
    ]
    assert len(fields(own)) > 120, len(fields(own))
    for name, field in fields(own).items():
        if name not in apart:
            assert known.get(name) == field, (name, field, known.get(name))
    for name, enum in enums(own).items():
        assert enums(other).get(name) == enum, (name, enum)
    known = methods(other)
    for name, method in methods(own).items():
        assert known.get(name) == method, (name, method, known.get(name))
    missing = {name.rsplit(".", 1)[1] for name in set(known) - set(methods(own))}
    assert all("SharedMemory" in name for name in missing), missing


def check_kserves_part_of_it(node):
    own = fields([ours("open_inference.proto")])
    other = fields(theirs("kserve.protocol.grpc.grpc_predict_v2_pb2"))
    # In these requests both protocols have a string in field 1, under two names.
    apart = {f"RepositoryModel{verb}Request.model_name" for verb in ["Load", "Unload"]}
    for name, field in other.items():
        if name not in apart:
            assert own.get(name) == field, (name, field, own.get(name))


def check_health(node):
    own, other = [ours("health.proto")], theirs("grpc_health.v1.health_pb2")
    for what in (fields, enums, methods):
        known = what(other)
        for name, value in what(own).items():
            assert known.get(name) == value, (name, value, known.get(name))


def check_health_is_answered(node):
    import grpc
    from grpc_health.v1 import health_pb2 as messages
    from grpc_health.v1.health_pb2_grpc import HealthStub

    with grpc.insecure_channel(node.address) as channel:
        stub = HealthStub(channel)
        for service in ["", "inference.GRPCInferenceService"]:
            answer = stub.Check(messages.HealthCheckRequest(service=service), timeout=20)
            assert answer.status == messages.HealthCheckResponse.SERVING, answer
        watched = stub.Watch(messages.HealthCheckRequest(service="nothing"), timeout=20)
        assert next(watched).status == messages.HealthCheckResponse.SERVICE_UNKNOWN
        watched.cancel()
