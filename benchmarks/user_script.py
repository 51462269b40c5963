"""A user's first script: read a motion sensor on a serial port, classify every window, publish the label."""

import argparse
import json
import time

import numpy as np
import paho.mqtt.client as mqtt
import serial
from ai_edge_litert.interpreter import Interpreter

LABELS = ["standing", "walking", "running", "badminton"]
MEAN = np.array([2.687, -1.3345, -1.0665, 0.0039, -0.013, -0.0803], dtype=np.float32)
STD = np.array([7.1857, 7.0098, 3.6379, 2.1893, 1.8861, 3.5648], dtype=np.float32)
LENGTH = 40


class Classifier:
    """Int8 model that turns a window of six channels into a probability for each label."""

    def __init__(self, model):
        self.interpreter = Interpreter(model_path=model, num_threads=1)
        self.interpreter.allocate_tensors()
        self.input = self.interpreter.get_input_details()[0]
        self.output = self.interpreter.get_output_details()[0]

    def __call__(self, window):
        """Return the probability of each label for a window, given as a list of rows."""
        scale, zero_point = self.input["quantization"]
        x = (np.array(window, dtype=np.float32) - MEAN) / STD
        x = np.clip(np.round(x / scale) + zero_point, -128, 127).astype(np.int8)
        self.interpreter.set_tensor(self.input["index"], x[np.newaxis])
        self.interpreter.invoke()
        y = self.interpreter.get_tensor(self.output["index"])[0]
        scale, zero_point = self.output["quantization"]
        return (y.astype(np.float32) - zero_point) * scale


def parse(line):
    """Return the number and the six values of a sample, or None if the line is torn."""
    try:
        seq, *sample = (float(value) for value in line.decode().split(","))
        return (int(seq), sample) if len(sample) == len(MEAN) else None
    except ValueError:
        return None


def make_message(seq, probabilities):
    """Return a result in JSON."""
    best = int(np.argmax(probabilities))
    scores = {label: round(float(score), 4) for label, score in zip(LABELS, probabilities, strict=True)}
    return json.dumps(
        {"seq": seq, "time": time.time(), "label": LABELS[best], "score": scores[LABELS[best]], "scores": scores}
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", default="/dev/ttyUSB0")
    parser.add_argument("--baud", type=int, default=115200)
    parser.add_argument("--broker", default="localhost")
    parser.add_argument("--broker-port", type=int, default=1883)
    parser.add_argument("--topic", default="motion/result")
    parser.add_argument("--model", default="model.tflite")
    parser.add_argument("--hop", type=int, default=10, help="samples between two classifications")
    args = parser.parse_args()

    classifier = Classifier(args.model)
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.connect(args.broker, args.broker_port)
    client.loop_start()
    window = []
    since = 0
    with serial.Serial(args.port, args.baud, timeout=1) as sensor:
        while True:
            parsed = parse(sensor.readline())
            if parsed is None:
                continue  # half a line, or no line within the timeout
            seq, sample = parsed
            window.append(sample)
            window = window[-LENGTH:]
            since += 1
            if len(window) == LENGTH and since >= args.hop:
                since = 0
                client.publish(args.topic, make_message(seq, classifier(window)), qos=1)


if __name__ == "__main__":
    main()
