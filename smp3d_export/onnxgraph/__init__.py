"""ONNX graphs: conversion, int8, planes, emulation of half precision."""
