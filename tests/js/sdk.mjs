// The official SDK, for files outside this folder: the package is installed here only.
export * from "@phala/cloud";
