# As much of nixpkgs' lib as the module needs, so that it can be evaluated where nixpkgs can not be had. Names, results
# and descriptions of types are those of the real one; `LIB=PATH scripts/check-nix` runs the same tests with that.
let
  inherit (builtins)
    all
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    genList
    head
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    mapAttrs
    stringLength
    substring
    ;

  lib = {
    inherit
      attrNames
      attrValues
      concatLists
      concatMap
      concatStringsSep
      elem
      filter
      length
      listToAttrs
      mapAttrs
      types
      ;
    inherit (builtins) any groupBy replaceStrings;

    concatMapStringsSep =
      separator: f: list:
      concatStringsSep separator (map f list);
    escapeShellArg =
      value:
      let
        text = toString value;
      in
      if builtins.match "[[:alnum:],._+:@%/-]+" text == null then
        "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] text}'"
      else
        text;
    filterAttrs =
      keep: set:
      listToAttrs (
        concatMap (name: lib.optional (keep name set.${name}) (lib.nameValuePair name set.${name})) (
          attrNames set
        )
      );
    genAttrs = names: f: listToAttrs (map (name: lib.nameValuePair name (f name)) names);
    getExe = package: "${package}/bin/${package.meta.mainProgram}";
    hasInfix = part: text: builtins.replaceStrings [ part ] [ "" ] text != text;
    hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
    hasSuffix =
      suffix: text:
      stringLength text >= stringLength suffix
      && substring (stringLength text - stringLength suffix) (-1) text == suffix;
    importTOML = path: builtins.fromTOML (builtins.readFile path);
    mapAttrs' = f: set: listToAttrs (map (name: f name set.${name}) (attrNames set));
    mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
    nameValuePair = name: value: { inherit name value; };
    optional = condition: value: if condition then [ value ] else [ ];
    optionalAttrs = condition: set: if condition then set else { };
    optionalString = condition: text: if condition then text else "";
    stringAsChars =
      f: text: concatStringsSep "" (genList (i: f (substring i 1 text)) (stringLength text));
    toList = value: if isList value then value else [ value ];
    toUpper = builtins.replaceStrings (letters "abcdefghijklmnopqrstuvwxyz") (
      letters "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    );

    literalExpression = text: {
      _type = "literalExpression";
      inherit text;
    };
    mkDefault = mkOverride 1000;
    mkEnableOption =
      what:
      lib.mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = "Whether to enable ${what}.";
      };
    mkForce = mkOverride 50;
    mkOption = attributes: attributes // { _type = "option"; };

    evalModules =
      {
        modules,
        specialArgs ? { },
        prefix ? [ ],
      }:
      let
        arguments = specialArgs // {
          inherit lib;
          inherit (result) config options;
        };
        all = distinct (concatMap (collect arguments) modules);
        options = foldl' (mergeOptions prefix) { } (map (module: module.options) all);
        result = {
          inherit options;
          config = evalTree prefix options (map (module: module.config) all);
        };
      in
      result;
  };

  letters = text: genList (i: substring i 1 text) (stringLength text);
  show = concatStringsSep ".";
  kind = value: if isAttrs value then value._type or "" else "";

  # --- modules

  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };

  # A module and what it imports, each as { key; options; config; }.
  collect =
    arguments: module:
    let
      loaded = if isPath module || isString module then import module else module;
      body = if isFunction loaded then loaded arguments else loaded;
      full = body ? config || body ? options;
      strange = filter (
        name:
        !elem name [
          "_file"
          "config"
          "imports"
          "key"
          "options"
        ]
      ) (attrNames body);
    in
    if full && strange != [ ] then
      throw "a module has unsupported attributes: ${toString strange}"
    else
      concatMap (collect arguments) (body.imports or [ ])
      ++ [
        {
          key = body.key or (if isPath module then toString module else null);
          options = body.options or { };
          config =
            if full then
              body.config or { }
            else
              removeAttrs body [
                "_file"
                "imports"
                "key"
              ];
        }
      ];

  distinct = foldl' (
    seen: module:
    if module.key != null && builtins.any (other: other.key == module.key) seen then
      seen
    else
      seen ++ [ module ]
  ) [ ];

  mergeOptions =
    loc: a: b:
    a
    // mapAttrs (
      name: value:
      if !a ? ${name} then
        value
      else if kind value == "option" || kind a.${name} == "option" then
        throw "the option ${show (loc ++ [ name ])} is declared twice"
      else
        mergeOptions (loc ++ [ name ]) a.${name} value
    ) b;

  # A definition with its priority.
  discharge =
    value:
    if kind value == "override" then
      {
        inherit (value) priority;
        value = value.content;
      }
    else
      {
        priority = 100;
        inherit value;
      };

  evalTree =
    loc: options: definitions:
    let
      unknown = filter (name: !options ? ${name}) (concatMap attrNames definitions);
      at =
        name: option:
        (if kind option == "option" then evalOption else evalTree) (loc ++ [ name ]) option (
          builtins.catAttrs name definitions
        );
    in
    if unknown != [ ] then
      throw "the option ${show (loc ++ [ (head unknown) ])} does not exist"
    else
      mapAttrs at options;

  evalOption =
    loc: option: definitions:
    let
      default = lib.optional (option ? default) (mkOverride 1500 option.default);
      merged = mergeDefinitions loc option.type (definitions ++ default);
    in
    if merged == [ ] then throw "the option ${show loc} has no value" else head merged;

  # A list with the merged value, or an empty one where no definition remains.
  mergeDefinitions =
    loc: type: definitions:
    let
      plain = map discharge definitions;
      first = foldl' (a: b: if a < b then a else b) 9999 (map (value: value.priority) plain);
      values = map (value: value.value) (filter (value: value.priority == first) plain);
      wrong = filter (value: !type.check value) values;
    in
    if plain == [ ] then
      [ ]
    else if wrong != [ ] then
      throw "the option ${show loc} is not of type ${type.description}"
    else
      [ (type.merge loc values) ];

  # --- types

  mergeEqual =
    loc: values:
    if all (value: value == head values) values then
      head values
    else
      throw "the option ${show loc} has conflicting values";

  mkType =
    attributes:
    {
      description = attributes.name;
      descriptionClass = "noun";
      merge = mergeEqual;
    }
    // attributes;

  phrase =
    classes: type:
    if elem type.descriptionClass classes then type.description else "(${type.description})";

  stringLike = value: isString value || isPath value || value ? outPath;

  types = {
    enum =
      values:
      mkType {
        name = "enum";
        description = "one of ${lib.concatMapStringsSep ", " (value: "\"${value}\"") values}";
        descriptionClass = "conjunction";
        check = value: elem value values;
      };
    bool = mkType {
      name = "bool";
      description = "boolean";
      check = isBool;
    };
    int = mkType {
      name = "int";
      description = "signed integer";
      check = isInt;
    };
    str = mkType {
      name = "str";
      description = "string";
      check = isString;
    };
    path = mkType {
      name = "path";
      check = value: stringLike value && substring 0 1 (toString value) == "/";
    };
    package = mkType {
      name = "package";
      check = value: kind value == "" && isAttrs value && value.type or "" == "derivation";
      merge =
        loc: values:
        if length values == 1 then head values else throw "the option ${show loc} is defined twice";
    };

    addCheck = type: check: type // { check = value: type.check value && check value; };

    attrsOf =
      element:
      mkType {
        name = "attrsOf";
        description = "attribute set of ${
          phrase [
            "noun"
            "composite"
          ] element
        }";
        descriptionClass = "composite";
        check = isAttrs;
        merge =
          loc: values:
          let
            names = attrNames (foldl' (a: b: a // b) { } values);
          in
          lib.genAttrs names (
            name: head (mergeDefinitions (loc ++ [ name ]) element (builtins.catAttrs name values))
          );
      };

    either =
      a: b:
      let
        classes = [
          "noun"
          "conjunction"
        ];
      in
      mkType {
        name = "either";
        description = "${phrase classes a} or ${phrase (classes ++ [ "composite" ]) b}";
        descriptionClass = "conjunction";
        check = value: a.check value || b.check value;
        merge =
          loc: values:
          if all a.check values then
            a.merge loc values
          else if all b.check values then
            b.merge loc values
          else
            throw "the option ${show loc} has values of several types";
      };

    listOf =
      element:
      mkType {
        name = "listOf";
        description = "list of ${
          phrase [
            "noun"
            "composite"
          ] element
        }";
        descriptionClass = "composite";
        check = isList;
        merge =
          loc: values:
          concatMap (value: mergeDefinitions (loc ++ [ "*" ]) element [ value ]) (concatLists values);
      };

    nullOr =
      element:
      mkType {
        name = "nullOr";
        description = "null or ${
          phrase [
            "noun"
            "conjunction"
          ] element
        }";
        descriptionClass = "conjunction";
        check = value: value == null || element.check value;
        merge =
          loc: values:
          if all (value: value == null) values then
            null
          else if builtins.any (value: value == null) values then
            throw "the option ${show loc} is defined both null and not null"
          else
            element.merge loc values;
      };

    oneOf = list: foldl' types.either (head list) (builtins.tail list);

    submodule =
      module:
      mkType {
        name = "submodule";
        check = value: isAttrs value || isFunction value;
        merge =
          loc: values:
          (lib.evalModules {
            prefix = loc;
            specialArgs.name = elemAt loc (length loc - 1);
            modules = [ module ] ++ map (value: if isFunction value then value else { config = value; }) values;
          }).config;
      };
  };
in
lib
